// A cpprestsdk stream buffer that hands bytes on as they arrive, with back-pressure, and the
// splitter that turns them into lines. cpprestsdk's own body() buffers without bound.
//
// Private to common/http_*.cpp.

#pragma once

#include <cpprest/streams.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "common/result.h"

namespace rouse::http {

/// Thrown through cpprestsdk by a sink, to stop the exchange with a reason of ours.
struct StreamError : std::exception {
  explicit StreamError(Status s) : status(std::move(s)) {}
  const char* what() const noexcept override { return status.message().c_str(); }
  Status status;
};

class LineSplitter {
 public:
  explicit LineSplitter(std::size_t max_line_bytes) : max_(max_line_bytes) {}

  /// Calls `on_line` for each complete non-empty line, without its line feed.
  Status Feed(std::string_view bytes, const std::function<Status(std::string_view)>& on_line) {
    while (!bytes.empty()) {
      const std::size_t end = bytes.find('\n');
      const std::string_view part = bytes.substr(0, end);
      if (pending_.size() + part.size() > max_) {
        return Status(StatusCode::kResourceExhausted,
                      "a line is over the limit of " + std::to_string(max_) + " bytes");
      }
      pending_.append(part);
      if (end == std::string_view::npos) return Status();
      bytes.remove_prefix(end + 1);
      std::string line;
      line.swap(pending_);
      if (line.empty()) continue;
      ROUSE_RETURN_IF_ERROR(on_line(line));
    }
    return Status();
  }

  bool mid_line() const { return !pending_.empty(); }

 private:
  std::size_t max_;
  std::string pending_;
};

/// The write-only stream buffer behind MakeByteSink; cpprestsdk wants every operation answered.
class SinkBuffer : public Concurrency::streams::details::streambuf_state_manager<std::uint8_t> {
  using Base = Concurrency::streams::details::streambuf_state_manager<std::uint8_t>;

 public:
  using traits = Base::traits;
  using int_type = Base::int_type;
  using pos_type = Base::pos_type;
  using off_type = Base::off_type;

  explicit SinkBuffer(std::function<void(std::string_view)> consume)
      : Base(std::ios_base::out), consume_(std::move(consume)) {}

  bool can_seek() const override { return false; }
  bool has_size() const override { return false; }
  utility::size64_t size() const override { return 0; }
  std::size_t buffer_size(std::ios_base::openmode) const override { return 0; }
  void set_buffer_size(std::size_t, std::ios_base::openmode) override {}
  std::size_t in_avail() const override { return 0; }
  pos_type getpos(std::ios_base::openmode) const override {
    return static_cast<pos_type>(traits::eof());
  }
  pos_type seekpos(pos_type, std::ios_base::openmode) override {
    return static_cast<pos_type>(traits::eof());
  }
  pos_type seekoff(off_type, std::ios_base::seekdir, std::ios_base::openmode) override {
    return static_cast<pos_type>(traits::eof());
  }
  bool acquire(std::uint8_t*& data, std::size_t& count) override {
    data = nullptr;
    count = 0;
    return false;
  }
  void release(std::uint8_t*, std::size_t) override {}

 protected:
  pplx::task<bool> _sync() override { return pplx::task_from_result(true); }
  pplx::task<int_type> _putc(std::uint8_t c) override {
    return Consume(&c, 1).then([c](std::size_t) { return static_cast<int_type>(c); });
  }
  pplx::task<std::size_t> _putn(const std::uint8_t* data, std::size_t count) override {
    return Consume(data, count);
  }
  std::uint8_t* _alloc(std::size_t) override { return nullptr; }  // No direct area: cpprest copies.
  void _commit(std::size_t) override {}
  pplx::task<int_type> _bumpc() override { return Eof(); }
  int_type _sbumpc() override { return traits::eof(); }
  pplx::task<int_type> _getc() override { return Eof(); }
  int_type _sgetc() override { return traits::eof(); }
  pplx::task<int_type> _nextc() override { return Eof(); }
  pplx::task<int_type> _ungetc() override { return Eof(); }
  pplx::task<std::size_t> _getn(std::uint8_t*, std::size_t) override {
    return pplx::task_from_result<std::size_t>(0);
  }
  std::size_t _scopy(std::uint8_t*, std::size_t) override { return 0; }

 private:
  static pplx::task<int_type> Eof() { return pplx::task_from_result<int_type>(traits::eof()); }
  pplx::task<std::size_t> Consume(const std::uint8_t* data, std::size_t count) {
    try {
      consume_(std::string_view(reinterpret_cast<const char*>(data), count));
      return pplx::task_from_result(count);
    } catch (...) {
      return pplx::task_from_exception<std::size_t>(std::current_exception());
    }
  }

  std::function<void(std::string_view)> consume_;
};

inline Concurrency::streams::ostream MakeByteSink(std::function<void(std::string_view)> consume) {
  return Concurrency::streams::streambuf<std::uint8_t>(
             std::shared_ptr<Concurrency::streams::details::basic_streambuf<std::uint8_t>>(
                 std::make_shared<SinkBuffer>(std::move(consume))))
      .create_ostream();
}

}  // namespace rouse::http
