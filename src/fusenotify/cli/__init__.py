"""The command line: `fusenotify COMMAND …`. Data goes to stdout, everything else to stderr."""

import logging
import sys
import traceback
from collections.abc import Sequence

from fusenotify.cli.parser import build_parser
from fusenotify.errors import FusenotifyError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: see `fusenotify --help`."""
    options, unknown = build_parser().parse_known_args(arguments)
    if unknown:
        options.refuse(f"unrecognized arguments: {' '.join(unknown)}")
    logging.basicConfig(
        level=logging.DEBUG if options.debug else logging.WARNING,
        format="fusenotify[%(process)d] %(asctime)s %(levelname)s: %(message)s",
    )
    try:
        code: int = options.run(options)
    except FusenotifyError as error:
        return _fail(str(error), error.exit_code, debug=options.debug)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has had enough; and python would complain at exit
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _fail(f"internal error: {error!r}; run again with --debug and report it", 1, debug=options.debug)
    return code


def _fail(message: str, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"fusenotify: {message}", file=sys.stderr)
    return code
