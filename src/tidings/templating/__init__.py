"""Templates: compile a version once, render it often. Pure: no I/O, no clock, no database, no channel, no project.

    language.py   what a template may say, and how a source is made safe to run
    filters.py    what values can be turned into: dates, money, lists; everything that could grow is accounted for
    template.py   content → CompiledTemplate → rendered fields

The engine is minijinja (Jinja's syntax). A template is written by a customer and runs inside our processes, so it is
treated as hostile: whatever it says, it ends within a second and some megabytes, with text or with a RenderError.
"""

from tidings.templating.template import CompiledTemplate, Kind, compile_template

__all__ = ["CompiledTemplate", "Kind", "compile_template"]
