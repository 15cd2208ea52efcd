"""Contenders: how each program's commands are spelled.  One small class a program."""
