"""A small real Linux machine for tests, measurements and the demonstration.

    build      Debian's cloud kernel + busybox in an initramfs, an ext4 disk; boots in about 2 s
    console    its serial shell: run a command, read what it said
    init       the guest's first process: modules, mounts, a counter in memory, a guest agent

``python -m tools.guest DIR`` builds it: DIR/kernel, DIR/initrd, DIR/disk.img.
"""
