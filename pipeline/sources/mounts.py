"""What file systems tell of their directories."""

from __future__ import annotations

import os

_KEEP_TIMES = (
    *("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "jfs", "reiserfs"),
    *("apfs", "hfs", "ntfs", "ntfs3", "fuseblk"),
    *("overlay", "aufs", "tmpfs", "ramfs", "squashfs", "erofs", "iso9660", "udf", "9p", "virtiofs"),
    *("nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "fuse.glusterfs"),
)
"""Whose directories have another time after an entry came or went: not FAT's, nor those of buckets mounted by FUSE."""


def keeps_directory_times(path: str) -> bool:
    """Returns whether the times of the directory `path` tell that an entry was added, removed or renamed in it."""
    import psutil

    real = os.path.join(os.path.realpath(path), "")
    holding = [
        mount for mount in psutil.disk_partitions(all=True) if real.startswith(os.path.join(mount.mountpoint, ""))
    ]
    # The last of several mounts on one point hides the others.
    nearest = max(enumerate(holding), key=lambda each: (len(each[1].mountpoint), each[0]), default=None)
    return nearest is not None and nearest[1].fstype.lower() in _KEEP_TIMES
