"""The network edge: volumes served over NBD, to QEMU or any other client.

wire          numbers of the protocol
options       payloads of options and of their replies
negotiation   bytes in, option replies out, until an export is chosen     (no sockets)
connection    bytes in, validated requests out                            (no sockets)
service       requests in, replies out: the one place that calls a device (no sockets)
contexts      block status: base:allocation, blockvault:diff:REV
peer          one client, from greeting to goodbye
transmission  its requests, served by two threads; inbox is what it sent
exports       name to device: opened late, shared, released with the last client
volumes       the volumes of a vault as exports: heads, revisions, copies that take writes
cow, layers   such a copy; which one a name means, and how long it stays
budget        a bound on the memory of large requests
channel, tls  a socket, or a socket under TLS
polling       a look at a socket before a thread sleeps on it
server        listeners and threads
serving       all of that for one vault, begun and ended together
attach        what to type to use an export; offers tells which server has it
stats         counters, rates, latency histogram
control       a second socket, for `status` and for `snapshot` while a server runs
"""
