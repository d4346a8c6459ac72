#include "error.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace ckpt {
namespace {

constexpr size_t kTextBytes = 2048;

// A plain array: it needs neither an allocation nor a destructor at the end of the thread.
thread_local char last_error_text[kTextBytes];

std::string format_list(const char* format, va_list arguments) {
  char text[kTextBytes];
  vsnprintf(text, sizeof text, format, arguments);
  return text;
}

const char* errno_name(int error_number) {
#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 32)
  const char* name = strerrorname_np(error_number);
  return name != nullptr ? name : "errno unknown";
#else
  return error_number == 2 ? "ENOENT" : "errno";
#endif
}

}  // namespace

void fail(ckpt_status status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::string text = format_list(format, arguments);
  va_end(arguments);
  throw Error(status, std::move(text));
}

void fail_errno(ckpt_status status, int error_number, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::string text = format_list(format, arguments);
  va_end(arguments);
  throw Error(status, text + ": " + errno_text(error_number));
}

std::string errno_text(int error_number) {
  char text[256];
  const char* message = strerror_r(error_number, text, sizeof text);
  return std::string(message) + " (" + errno_name(error_number) + ")";
}

std::string format_text(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::string text = format_list(format, arguments);
  va_end(arguments);
  return text;
}

void set_last_error(const char* text) noexcept {
  snprintf(last_error_text, sizeof last_error_text, "%s", text);
}

const char* last_error() noexcept { return last_error_text; }

void copy_text(const char* text, char* out, uint32_t out_bytes) {
  if (out == nullptr || out_bytes == 0) fail(CKPT_ERR_INVALID, "no room for a text");
  snprintf(out, out_bytes, "%s", text);
}

}  // namespace ckpt
