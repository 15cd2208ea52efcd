"""Real disk images to measure with: five states of two Debian systems, built from packages.

    tools/images/build DIR          about 3 minutes, as root; a state that exists is kept

``states.py`` says what the states are, ``build.py`` makes them.  Beside the images lies
``series.json``, which names them in order: ``tools/bench/run --images DIR`` reads it.
"""
