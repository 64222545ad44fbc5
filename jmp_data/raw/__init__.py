"""Everything that touches bytes from outside: downloads, archives, LMDB files and the pickles inside them."""
