"""Counts ThreadSanitizer's reports in which our own code makes one of the two accesses: thread-sanitizer-reports.py
LOG PATTERN. The access is the first frame that is not of the C library; what drops a thread's handle is the standard
library's, also where it is compiled into our crate."""

import re
import sys

text, ours = open(sys.argv[1], errors="replace").read(), re.compile(sys.argv[2])
library = re.compile(r"(memcpy|memmove|memset|free|malloc|calloc|realloc)\b")
others = re.compile(r"<?(std|core|alloc|test)::")
reports = text.split("WARNING: ThreadSanitizer: ")[1:]
if "test result: ok" not in text:
    sys.exit("the tests did not run")
count = 0
for report in reports:
    for frames in re.findall(r"^  (?:Previous |Read|Write|Atomic|atomic)[^\n]*\n((?:    #[^\n]*\n)+)", report, re.M):
        names = [frame.strip().split(" ", 1)[1] for frame in frames.strip().split("\n")]
        names = [name for name in names if not library.match(name)]
        if names and ours.search(names[0]) and not others.match(names[0]):
            count += 1
            print(report)
            break
print(f"{count} of {len(reports)} reports are about our own code")
sys.exit(count > 0)
