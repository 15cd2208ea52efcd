"""The hypervisor's edge: machines that run from a branch, and snapshots of all that they are.

machine     what a machine is: its configuration, kept with every snapshot
host        what this host offers: QEMU, KVM or emulation, its processor, room for memory
trial       whether KVM runs a guest here
command     a machine as QEMU's command line
rundir      the files of a running machine: sockets, memory, who runs it
consolelog  what it wrote to its serial console
qmp         QEMU's monitor
process     the QEMU process: started, found again, waited for
agent       the guest's agent: file systems frozen for a quiet snapshot
disks       its disks over NBD, by what whoever starts it brings
planning    how a revision starts: from saved memory, or from its disks
state       memory and devices, into the vault and back, while the guest hardly notices
filling     saved memory and boot files, from the vault to where QEMU finds them
arriving    memory that comes while its guest runs
postcopy    the stream in which it does
touched     what guests touched first, for the next one
restoring   a saved state in a QEMU that was just started
statefile   a saved state of devices as a file that a running QEMU takes back
running     one machine while it runs
rewind      back to a full snapshot inside of the QEMU that runs
hold        a supervisor's hold of its branch, and what the one before it has left
lifetime    how a machine begins and ends
supervisor  the process that holds the branch, serves its disks and watches QEMU
orders      what it is asked through its control socket
foreign     a QEMU that somebody else started: what it is, and its state as a stream
receiving   that stream on its way in
handover    such a state taken into the vault, and given back to a QEMU that waits for it
stream      QEMU's migration stream taken apart, so that pages are stored as pages
mirror      disks of such a QEMU copied while its guest runs
folders     machines of VirtualBox, VMware, Hyper-V and Xen as folders of files
traits      what the headers of their disks tell, again in those that qemu-img writes
references  the disks that their configurations name

    guest ── virtio-blk ── QEMU ── NBD, unix socket ── session (branch) ── vault
               memory ── shared file on tmpfs ─────── capture ───────────┘
"""
