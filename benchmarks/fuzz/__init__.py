"""Broken inputs by the thousand: what the project makes of files that nobody would write on purpose.

``case`` says what a case is and how it is judged, ``runner`` tries cases in child processes under a limit of time and
memory, ``mutate`` breaks bytes and values; the other modules are the kinds of inputs.
"""
