"""Word wrap of text that comes in pieces, as a model writes it."""


class WordWrapper:
    """Breaks text between words where a terminal of `width` columns would break it anywhere.

    A word is held back until it has ended, or fills a line. Wide characters, such as those of
    Chinese, may be broken after each.
    """

    def __init__(self, width: int):
        self._width, self._column = width, 0
        self._space = self._word = ""

    def add(self, text: str) -> str:
        """Adds a piece and returns what can be written now."""
        from rich.cells import cell_len

        out = ""
        for char in text:
            n_cells = cell_len(char)
            if char == "\n":
                out += self._release() + "\n"
                self._space, self._column = "", 0
            elif char in " \t":
                out += self._release()
                self._space += char.expandtabs(4)
            elif n_cells > 1:
                out += self._release() + self._place(char, n_cells)
            else:
                self._word += char
                if len(self._word) >= self._width:
                    out += self._release()
        return out

    def end(self) -> str:
        """Returns the rest."""
        out, self._space = self._release(), ""
        return out

    def _release(self) -> str:
        """The word that has ended, or "" if there is none."""
        from rich.cells import cell_len

        word, self._word = self._word, ""
        return self._place(word, cell_len(word)) if word else ""

    def _place(self, word: str, n_cells: int) -> str:
        """The word after the space before it, or on a new line."""
        space, self._space = self._space, ""
        can_break = self._column > 0 and (space or n_cells > len(word))
        if can_break and self._column + len(space) + n_cells > self._width:
            self._column = n_cells
            return f"\n{word}"
        self._column = (self._column + len(space) + n_cells) % self._width or self._width
        return space + word
