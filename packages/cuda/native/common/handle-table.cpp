#include "handle-table.h"

#include <deque>
#include <mutex>
#include <vector>

namespace ckpt {
namespace {

constexpr uint32_t kIndexBits = 18;
constexpr uint32_t kIndexMask = (1u << kIndexBits) - 1;
constexpr uint32_t kGenerationMask = (1u << (32 - kIndexBits)) - 1;
constexpr uint32_t kSlotsMax = 1u << kIndexBits;
// A freed slot waits behind this many others before it is used again.
constexpr size_t kFreeSlotsKept = 1024;

}  // namespace

struct HandleTable::State {
  struct Slot {
    std::shared_ptr<Object> object;
    uint32_t generation = 1;
    Kind kind = Kind::none;
  };
  std::mutex mutex;
  std::vector<Slot> slots;
  std::deque<uint32_t> free_slots;
  uint32_t live = 0;

  Slot& resolve(Kind kind, uint32_t handle) {
    const uint32_t index = handle & kIndexMask;
    if (index >= slots.size() || slots[index].kind == Kind::none ||
        slots[index].generation != handle >> kIndexBits) {
      fail(CKPT_ERR_HANDLE, "%u is no live %s handle", handle, kind_name(kind));
    }
    if (slots[index].kind != kind) {
      fail(CKPT_ERR_HANDLE, "handle %u is a %s, not a %s", handle, kind_name(slots[index].kind),
           kind_name(kind));
    }
    return slots[index];
  }
};

const char* kind_name(Kind kind) noexcept {
  switch (kind) {
    case Kind::none:
      return "freed";
    case Kind::signal:
      return "signal";
    case Kind::file:
      return "file";
    case Kind::buffer:
      return "buffer";
    case Kind::read:
      return "read";
    case Kind::memory:
      return "memory";
    case Kind::stream:
      return "stream";
    case Kind::event:
      return "event";
    case Kind::group:
      return "group";
    case Kind::communicator:
      return "communicator";
    case Kind::refcounter:
      return "refcounter";
    case Kind::p2p:
      return "p2p";
    case Kind::p2p_peer:
      return "p2p peer";
    case Kind::p2p_remote:
      return "p2p remote";
    case Kind::p2p_read:
      return "p2p read";
  }
  return "unknown";
}

HandleTable::HandleTable() : state_(*new State) {}

// Never destroyed: threads of the caller may still be in a call while the process ends.
HandleTable& HandleTable::instance() {
  static HandleTable& table = *new HandleTable;
  return table;
}

uint32_t HandleTable::add(Kind kind, std::shared_ptr<Object> object) {
  std::lock_guard lock(state_.mutex);
  uint32_t index;
  if (state_.free_slots.size() > kFreeSlotsKept ||
      (state_.slots.size() == kSlotsMax && !state_.free_slots.empty())) {
    index = state_.free_slots.front();
    state_.free_slots.pop_front();
  } else {
    if (state_.slots.size() == kSlotsMax)
      fail(CKPT_ERR_MEMORY, "all %u handles are in use", kSlotsMax);
    index = static_cast<uint32_t>(state_.slots.size());
    state_.slots.emplace_back();
  }
  State::Slot& slot = state_.slots[index];
  slot.object = std::move(object);
  slot.kind = kind;
  state_.live++;
  return slot.generation << kIndexBits | index;
}

std::shared_ptr<Object> HandleTable::find(Kind kind, uint32_t handle) {
  std::lock_guard lock(state_.mutex);
  return state_.resolve(kind, handle).object;
}

std::shared_ptr<Object> HandleTable::take(Kind kind, uint32_t handle) {
  std::lock_guard lock(state_.mutex);
  State::Slot& slot = state_.resolve(kind, handle);
  state_.free_slots.push_back(handle & kIndexMask);
  std::shared_ptr<Object> object = std::move(slot.object);
  slot.object = nullptr;
  slot.kind = Kind::none;
  slot.generation = (slot.generation + 1) & kGenerationMask;
  if (slot.generation == 0) slot.generation = 1;
  state_.live--;
  return object;
}

uint32_t HandleTable::count() {
  std::lock_guard lock(state_.mutex);
  return state_.live;
}

}  // namespace ckpt
