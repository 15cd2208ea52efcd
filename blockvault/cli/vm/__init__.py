"""Commands of ``blockvault vm``, one module each."""
