"""Every kind of attention pattern, a file each: what is put here is found by its `kind`, by every part of
sinklora that names, trains, draws or measures patterns.
"""

import importlib
import pkgutil

for module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{module.name}")
