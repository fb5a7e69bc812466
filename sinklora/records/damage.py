"""What those who unpack files raise where a byte is not the one that was written."""

import zipfile
import zlib

DAMAGED_GZIP = (OSError, EOFError, zlib.error)

# RuntimeError: a wrong bit says that a part is encrypted, or (NotImplementedError) packed by a later version.
DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, UnicodeDecodeError)
