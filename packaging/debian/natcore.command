#!/usr/bin/python3 -I
import sys

sys.path.insert(0, "/usr/lib/natcore/lib/python@VERSION@/site-packages")

from natcore.cli import run_program

run_program()
