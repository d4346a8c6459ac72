// Errors inside the library are exceptions of one class; guard() turns them into a status at the C
// boundary.
#pragma once

#include <cstdint>
#include <exception>
#include <new>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>

#include "ckpt.h"

namespace ckpt {

class Error : public std::exception {
 public:
  Error(ckpt_status status, std::string text) : status_(status), text_(std::move(text)) {}
  ckpt_status status() const noexcept { return status_; }
  const std::string& text() const noexcept { return text_; }
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  ckpt_status status_;
  std::string text_;
};

[[noreturn]] void fail(ckpt_status status, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

// The text gets ": No such file or directory (ENOENT)" behind it.
[[noreturn]] void fail_errno(ckpt_status status, int error_number, const char* format, ...)
    __attribute__((format(printf, 3, 4)));

std::string errno_text(int error_number);
std::string format_text(const char* format, ...) __attribute__((format(printf, 1, 2)));

void set_last_error(const char* text) noexcept;
const char* last_error() noexcept;

// Copies text into a caller's buffer, NUL terminated and cut; CKPT_ERR_INVALID without room for one
// byte.
void copy_text(const char* text, char* out, uint32_t out_bytes);

// Runs a function of the C ABI. `body` returns nothing, or a ckpt_status that is not an error
// (NOT_READY).
template <class Body>
int32_t guard(Body&& body) noexcept {
  try {
    if constexpr (std::is_void_v<decltype(body())>) {
      body();
      return CKPT_OK;
    } else {
      return body();
    }
  } catch (const Error& error) {
    set_last_error(error.what());
    return error.status();
  } catch (const std::bad_alloc&) {
    set_last_error("out of host memory");
    return CKPT_ERR_MEMORY;
  } catch (const std::system_error& error) {  // a thread that could not be started
    set_last_error(error.what());
    return CKPT_ERR_MEMORY;
  } catch (const std::exception& error) {
    set_last_error(error.what());
    return CKPT_ERR_STATE;
  } catch (...) {
    set_last_error("an exception of unknown type");
    return CKPT_ERR_STATE;
  }
}

template <class T>
T& require(T* pointer, const char* name) {
  if (pointer == nullptr) fail(CKPT_ERR_INVALID, "%s is null", name);
  return *pointer;
}

// CKPT_ERR_INVALID unless [offset, offset + bytes) lies in [0, limit).
inline void require_range(const char* what, uint64_t offset, uint64_t bytes, uint64_t limit) {
  if (offset > limit || bytes > limit - offset) {
    fail(CKPT_ERR_INVALID, "%s: range %llu + %llu is outside of %llu bytes", what,
         static_cast<unsigned long long>(offset), static_cast<unsigned long long>(bytes),
         static_cast<unsigned long long>(limit));
  }
}

}  // namespace ckpt
