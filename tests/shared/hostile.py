"""Text that breaks Markdown, HTML, YAML or templates where it is not escaped."""

HOSTILE = [
    "| a | b |", "<script>alert(1)</script>", "{{ 7 * 7 }}", "{% raw %}", "```", "~~~~", "````python", "# head", "1. x",
    "-", "---", "===", "\\", "\\|", "a\\", "*b*", "_c_", "a_b", "__", "[x](http://y)", "![i](z)", "http://w.x",
    "www.x.org", "&amp;", "&#x41;", "$x^2$", "@me", ":tada:", "\u202e", "\u200b", "\x00", "\x1b[31m", "\ud800", "\r",
    "\r\n", "\n\n", "\t", "    ", "yes", "no", "1e10", "0x1F", "null", "~", ".inf", "12:30:00", "2020-01-01", "'", '"',
    "%", "?", "e\u0301", "1234567890123456789012345678901234567890", "+1", "- x", "1) y", "\u2028", "\xa0", "=", "<<",
    "\ufeff", "#", "!", "{", "}", "\n---\n", "\n```\n",
]  # fmt: skip
