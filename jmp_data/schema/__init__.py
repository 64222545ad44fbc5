"""What a record is: the field table, one structure, a columnar block of many, their units and their validation."""

from jmp_data.schema.block import Block
from jmp_data.schema.fields import Field, Schema
from jmp_data.schema.structure import Structure

__all__ = ["Block", "Field", "Schema", "Structure"]
