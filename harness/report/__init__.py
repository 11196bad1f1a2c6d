"""Verdicts for people and programs: one file per format, found by scanning this folder.

A file has `write(verdict: Verdict, path: Path) -> None`; its module's name is the option that
asks for it (`--json FILE`). `terminal.py` alone prints instead.
"""
