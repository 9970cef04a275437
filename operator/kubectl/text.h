// Text for terminals: what of others' text may get there, colours, and columns. Pure.
//
// Whoever may write objects of a namespace may have written any bytes into them. Nothing that comes
// from the API server gets to a terminal but through Printable, so that it can neither move the
// cursor, nor change colours, nor turn the direction of what follows.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "operator/api/time.h"

namespace rouse::kubectl {

/// Where text is shown.
struct Screen {
  int columns = 80;
  bool colour = false;  ///< It understands colours, and whoever reads it wants them.
};

/// `text` in one line, with control characters, characters that turn the direction of writing or
/// have no width, and what is no UTF-8, spelled out: "\x1b", "\u202e".
std::string Printable(std::string_view text);

/// The same for XML: Printable, with &, <, > and quotes escaped.
std::string XmlEscaped(std::string_view text);

/// Characters of UTF-8; each is taken to be one column wide.
std::size_t Width(std::string_view text);

/// `text`, cut with "…" when it is wider than `columns`.
std::string Cut(const std::string& text, std::size_t columns);

enum class Colour { kNone, kGood, kWarning, kBad, kFaint, kBold };

/// `text` in that colour if the screen has any.
std::string Paint(const Screen& screen, Colour colour, const std::string& text);

/// Rows of cells, each column as wide as its widest cell; the last one takes what is left.
class Table {
 public:
  struct Cell {
    std::string text;  ///< Is made Printable.
    Colour colour = Colour::kNone;
    bool right = false;  ///< Flush right: numbers.
  };

  void Add(std::vector<Cell> row) { rows_.push_back(std::move(row)); }
  /// Each line begins with `indent` and ends with a line break.
  std::string ToString(const Screen& screen, std::string_view indent = "") const;

 private:
  std::vector<std::vector<Cell>> rows_;
};

/// Microseconds as "13.75" seconds.
std::string Seconds(std::int64_t us);
/// "323.9 MB", "1.2 GB".
std::string Bytes(std::int64_t bytes);
/// "12 s", "5 min", "3 h", "2 d".
std::string Age(std::chrono::microseconds age);
/// "1 start", "2 starts".
std::string Plural(std::int64_t count, const std::string& noun);

}  // namespace rouse::kubectl
