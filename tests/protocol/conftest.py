"""Hypothesis without deadlines: a busy machine is no defect of the code."""

import hypothesis

hypothesis.settings.register_profile("soloist", deadline=None, max_examples=25)
hypothesis.settings.load_profile("soloist")
