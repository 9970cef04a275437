#include "operator/kubectl/text.h"

#include <algorithm>
#include <cstdio>

namespace rouse::kubectl {
namespace {

struct Character {
  char32_t code = 0;
  std::size_t bytes = 1;
  bool valid = false;
};

// The character at the beginning of `text`, which is not empty. Neither overlong forms nor
// surrogates are valid.
Character First(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  if (byte(0) < 0x80) return {byte(0), 1, true};
  std::size_t bytes = 0;
  char32_t code = 0, least = 0;
  if ((byte(0) & 0xE0) == 0xC0) {
    bytes = 2, code = byte(0) & 0x1F, least = 0x80;
  } else if ((byte(0) & 0xF0) == 0xE0) {
    bytes = 3, code = byte(0) & 0x0F, least = 0x800;
  } else if ((byte(0) & 0xF8) == 0xF0) {
    bytes = 4, code = byte(0) & 0x07, least = 0x10000;
  } else {
    return {};
  }
  if (text.size() < bytes) return {};
  for (std::size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {};
    code = code << 6 | (byte(i) & 0x3F);
  }
  if (code < least || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return {};
  return {code, bytes, true};
}

bool IsControl(char32_t code) {
  return code < 0x20 || (code >= 0x7F && code <= 0x9F);
}

// Turns the direction of writing, breaks the line, or cannot be seen.
bool IsInvisible(char32_t code) {
  return code == 0xAD || code == 0x61C || (code >= 0x200B && code <= 0x200F) ||
         (code >= 0x2028 && code <= 0x202E) || (code >= 0x2060 && code <= 0x206F) ||
         code == 0xFEFF || (code >= 0xFFF9 && code <= 0xFFFB) || code >= 0xE0000;
}

std::string Spelled(const char* format, unsigned code) {
  char out[16];
  std::snprintf(out, sizeof out, format, code);
  return out;
}

std::string_view Code(Colour colour) {
  switch (colour) {
    case Colour::kNone:
      return "";
    case Colour::kGood:
      return "\x1b[32m";
    case Colour::kWarning:
      return "\x1b[33m";
    case Colour::kBad:
      return "\x1b[31m";
    case Colour::kFaint:
      return "\x1b[2m";
    case Colour::kBold:
      return "\x1b[1m";
  }
  return "";
}

}  // namespace

std::string Printable(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const Character c = First(text);
    if (!c.valid) {
      out += Spelled("\\x%02x", static_cast<unsigned char>(text[0]));
    } else if (c.code == '\n' || c.code == '\r' || c.code == '\t') {
      out += ' ';
    } else if (IsControl(c.code)) {
      out += Spelled("\\x%02x", c.code);
    } else if (IsInvisible(c.code)) {
      out += Spelled("\\u%04x", c.code);
    } else {
      out += text.substr(0, c.bytes);
    }
    text.remove_prefix(c.bytes);
  }
  return out;
}

std::string XmlEscaped(std::string_view text) {
  std::string out;
  for (const char c : Printable(text)) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::size_t Width(std::string_view text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

std::string Cut(const std::string& text, std::size_t columns) {
  if (Width(text) <= columns) return text;
  if (columns == 0) return "";
  std::size_t end = 0;
  for (std::size_t left = columns - 1; end < text.size();) {
    const std::size_t bytes = First(std::string_view(text).substr(end)).bytes;
    if (left == 0) break;
    --left;
    end += bytes;
  }
  return text.substr(0, end) + "…";
}

std::string Paint(const Screen& screen, Colour colour, const std::string& text) {
  if (!screen.colour || colour == Colour::kNone || text.empty()) return text;
  return std::string(Code(colour)) + text + "\x1b[0m";
}

std::string Table::ToString(const Screen& screen, std::string_view indent) const {
  std::vector<std::size_t> widths;
  for (const auto& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], Width(Printable(row[i].text)));
    }
  }
  std::string out;
  for (const auto& row : rows_) {
    std::string line(indent);
    // What follows the last cell that says something is left out.
    std::size_t used = row.size();
    while (used > 0 && row[used - 1].text.empty()) --used;
    for (std::size_t i = 0; i < used; ++i) {
      const std::string text = Printable(row[i].text);
      const std::string pad(widths[i] - Width(text), ' ');
      if (i > 0) line += "  ";
      if (row[i].right) line += pad;
      line += Paint(screen, row[i].colour, text);
      if (!row[i].right && i + 1 < used) line += pad;
    }
    out += line + "\n";
  }
  return out;
}

std::string Seconds(std::int64_t us) {
  char out[40];
  std::snprintf(out, sizeof out, "%.2f", static_cast<double>(us) / 1e6);
  return out;
}

std::string Bytes(std::int64_t bytes) {
  char out[40];
  const auto number = static_cast<double>(bytes);
  if (number >= 1e9) {
    std::snprintf(out, sizeof out, "%.1f GB", number / 1e9);
  } else {
    std::snprintf(out, sizeof out, "%.1f MB", number / 1e6);
  }
  return out;
}

std::string Age(std::chrono::microseconds age) {
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(age).count();
  if (seconds < 120) return std::to_string(seconds) + " s";
  if (seconds < 2 * 3600) return std::to_string(seconds / 60) + " min";
  if (seconds < 48 * 3600) return std::to_string(seconds / 3600) + " h";
  return std::to_string(seconds / 86400) + " d";
}

std::string Plural(std::int64_t count, const std::string& noun) {
  return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
}

}  // namespace rouse::kubectl
