"""``python -m tools.guest DIR``."""

from tools.guest.build import main

main()
