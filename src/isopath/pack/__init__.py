"""Many tasks in one network, each in a sub-network of its own."""

from isopath.pack.owners import Owners
from isopath.pack.packer import pack
from isopath.pack.packing import Packing

__all__ = ["Owners", "Packing", "pack"]
