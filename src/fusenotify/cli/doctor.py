"""`fusenotify doctor`."""

import argparse

from fusenotify.cli.output import put_line
from fusenotify.doctor import format_report, run_checks
from fusenotify.errors import EnvironmentProblem


def run(options: argparse.Namespace) -> int:
    """Print what was found; exit code 4 when something stands in the way of mounting."""
    checks = run_checks()
    put_line(format_report(checks))
    return 0 if all(check.ok for check in checks) else EnvironmentProblem.exit_code
