"""Commands of ``blockvault vm``, one module each (``*_cmd``), and the processes that run machines.

common      where machines run, whom to ask, how their disks are served
background  a machine's process: a fork of the command that starts it
life        what that does from its start to its end
"""
