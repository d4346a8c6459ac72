// Objects and the u32 handles that stand for them outside of the library.
#pragma once

#include <cstdint>
#include <memory>

#include "error.h"

namespace ckpt {

enum class Kind : uint8_t {
  none,
  signal,
  file,
  buffer,
  read,
  memory,
  stream,
  event,
  group,
  communicator,
  refcounter,
  p2p,
  p2p_peer,
  p2p_remote,
  p2p_read
};

const char* kind_name(Kind kind) noexcept;

// Every object is held by shared_ptr: the table owns one reference, each call in progress and each
// piece of queued work another. Destroying a handle drops the table's reference, so that a use in
// another thread ends safely.
class Object {
 public:
  Object() = default;
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;
  virtual ~Object() = default;

  // Called once, when the handle is destroyed and before the table's reference goes: ends or waits
  // for what the object still does. The memory itself is freed by the destructor, once nobody uses
  // the object.
  virtual void close() {}
};

// Handle = slot index and generation, never 0. A slot is used again late, so that a stale handle
// stays stale.
class HandleTable {
 public:
  static HandleTable& instance();

  uint32_t add(Kind kind, std::shared_ptr<Object> object);
  std::shared_ptr<Object> find(Kind kind, uint32_t handle);
  std::shared_ptr<Object> take(Kind kind, uint32_t handle);
  uint32_t count();

 private:
  struct State;
  HandleTable();
  State& state_;
};

// T::kKind is the kind of the class.
template <class T>
uint32_t add_object(std::shared_ptr<T> object) {
  return HandleTable::instance().add(T::kKind, std::move(object));
}

// Throws CKPT_ERR_HANDLE for a handle that is stale, foreign or of another kind.
template <class T>
std::shared_ptr<T> find_object(uint32_t handle) {
  return std::static_pointer_cast<T>(HandleTable::instance().find(T::kKind, handle));
}

// As find_object; 0 stands for no object.
template <class T>
std::shared_ptr<T> find_optional(uint32_t handle) {
  return handle == 0 ? nullptr : find_object<T>(handle);
}

template <class T>
void destroy_object(uint32_t handle) {
  HandleTable::instance().take(T::kKind, handle)->close();
}

}  // namespace ckpt
