# Started by spryd: `python3 <options> -c <this>`. Loads the runtime's extension module and hands over to it.
import sys
# Not the function's own folder: nothing of the function may run before spry's module has begun.
sys.path[:] = [folder for folder in sys.path if folder]
import os
if sys.implementation.name != "cpython" or sys.version_info < (3, 9):
    sys.exit("spry's Python runtime needs CPython 3.9 or later; this is " + sys.version)
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec
path = os.path.join(os.environ.pop("SPRY_RUNTIME_DIR"), "_spry.abi3.so")
loader = ExtensionFileLoader("_spry", path)
module = module_from_spec(ModuleSpec("_spry", loader, origin=path))
loader.exec_module(module)
sys.modules["_spry"] = module
module.begin()
module.main()
