"""What all commands share: options, one-line errors, exit codes, the log in the experiment's folder."""

from __future__ import annotations

FAILURE, USER_MISTAKE, INTERRUPTED = 1, 2, 130
