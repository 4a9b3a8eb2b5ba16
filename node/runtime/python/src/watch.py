"""What importing looks for while a layer is made, found or not: who has that is not given the layer."""

import gc
import sys


class Watched(list):
    """`sys.path` while a layer is made: who looks through it by himself sees what else there is."""

    OF_PYTHON = ("_frozen_importlib", "_frozen_importlib_external", "importlib._bootstrap", "importlib._bootstrap_external",
                 "importlib.metadata", "importlib_metadata", "zipimport")
    # What asks all finders for one thing, the watch among them; and what looks for the rest of a namespace that is imported.
    ASKS_ALL = ("_find_spec", "<genexpr>", "from_name", "_recalculate")
    # Who looks for distributions only.
    OF_DISTRIBUTIONS = ("pkg_resources",)
    watch = None

    def _seen(self):
        if self.watch is None:
            return
        frame = sys._getframe(2)
        while frame is not None and frame.f_globals.get("__name__") in self.OF_PYTHON:
            if frame.f_code.co_name in self.ASKS_ALL:
                return
            frame = frame.f_back  # (a single finder, asked by whoever comes next: the watch isn't)
        self.watch.all = True
        if frame is None or frame.f_globals.get("__name__") not in self.OF_DISTRIBUTIONS:
            self.watch.walked = True

    def __radd__(self, _other):
        self._seen()
        return NotImplemented  # as a list would do it


def looked(name):
    method = getattr(list, name)

    def look(self, *arguments, **named):
        self._seen()
        return method(self, *arguments, **named)
    return look


# (Not `in`, `index`, `count` and `len`: these tell nothing of folders that the asker couldn't name.)
for looks in ("__iter__", "__reversed__", "__getitem__", "__add__", "__mul__", "__rmul__", "__repr__", "__eq__", "__ne__",
              "__lt__", "__le__", "__gt__", "__ge__", "copy", "pop"):
    setattr(Watched, looks, looked(looks))


class Asked:
    """The first of all finders, which finds nothing: what it is asked for may be found, or not, by another."""

    def __init__(self):
        self.modules, self.distributions, self.all, self.walked = set(), set(), False, False

    def find_spec(self, name, path=None, target=None):
        # What is looked for in a package's own folder only is there in none of the others.
        if type(path) is not list:
            self.modules.add(name.partition(".")[0])
        return None

    def find_distributions(self, context=None):
        name = getattr(context, "name", None)
        if name is None:
            self.all = True
        else:
            self.distributions.add(str(name))
        return iter(())

    def invalidate_caches(self):
        pass


class Watch(Asked):
    """The last of all finders as well: what it is asked for isn't there. What is found and not imported is as much to
    be known of: another function's packages, or its own code, may have the same and come first."""

    def __enter__(self):
        self.first = Asked()
        self.path, sys.path = sys.path, Watched(sys.path)
        sys.path.watch = self
        sys.meta_path.insert(0, self.first)
        sys.meta_path.append(self)
        return self

    def __exit__(self, *_):
        for finder in (self.first, self):
            if finder in sys.meta_path:
                sys.meta_path.remove(finder)
            else:
                self.all = self.walked = True
        self.modules |= self.first.modules - {name for name in sys.modules if isinstance(name, str)}
        self.distributions |= self.first.distributions
        self.all |= self.first.all
        watched = sys.path
        if not isinstance(watched, Watched):
            self.all = self.walked = True
            return
        watched.watch = None
        self.path[:] = watched
        sys.path = self.path
        gc.collect()
        fresh = []
        if sys.getrefcount(watched) > sys.getrefcount(fresh):
            # A module keeps it, and is to keep what `sys.path` is.
            sys.path = watched
            self.all = self.walked = True
