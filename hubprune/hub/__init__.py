"""The hub room: one session, one atomic commit, and all that is checked around it."""
