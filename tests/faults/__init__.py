"""The fault suite: kills and delays at every named step of the protocol, and the books after it.

=================  ==============================================================================
``steps``          the named steps, what can happen there, and orders that reach a worker by file
``client``         the echo client with the steps in it, and its execution log
``taps``           the steps on the supervisor's side, and each request's terminal outcome
``load``           callers of every kind: polite, impatient, vanishing
``accountant``     the promises, checked for each request, conversation and cycle
``soak``           cycles of one fault with its load around; rounds of cycles on one Supervisor
``measure``        throughput under kills, and how soon a killed worker is replaced
=================  ==============================================================================

``python -m tests.faults --help`` for the long forms; pytest runs short ones with fixed seeds. No
production code knows of any of this: in a worker the test's own client holds the steps, in the
supervisor's process two classes are replaced by subclasses.
"""
