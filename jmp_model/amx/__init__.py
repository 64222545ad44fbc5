"""Float32 matrix products in the tile registers of AMX, where the processor has them."""

from jmp_model.amx.product import fits, multiply, tiles_are_available

__all__ = ["fits", "multiply", "tiles_are_available"]
