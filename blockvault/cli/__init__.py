"""The program ``blockvault``: the only part that prints, reads the environment, and exits.

main.py        finds the command and runs it
failing.py     every error as one line and an exit code
common.py      what commands share: options, parameter types, opening the vault
output.py      text for people, JSON lines for programs
progress.py    progress bars, on a terminal, when it takes longer than a second
history.py, changes.py, describe.py, graph.py
               how snapshots, differences, events and lines of history are shown
tuning.py      how the interpreter and its memory are set, for commands and for servers
vm/            the commands about machines, and the processes that run them
logs.py        the log of servers and machines
signals.py     what a program does that is told to end
keeping.py, bisecting.py
               what `prune` and `policy set`, and the parts of `bisect`, have in common
complete.py    what a shell offers after a TAB
*_cmd.py       one command each: parse, call the vault, print; no logic of their own
"""

import gc

# While a program is loaded nothing becomes garbage, and looking for some took a tenth of the time
# of a short command.  This runs before anything else is loaded.
gc.set_threshold(50_000)
