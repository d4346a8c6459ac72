// The library itself and its signals.
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "backend.h"
#include "init.h"
#include "numa.h"
#include "signals.h"

using namespace ckpt;

uint32_t ckpt_abi_version(void) { return CKPT_ABI_VERSION; }

uint32_t ckpt_struct_bytes(const char* name) {
  static const struct {
    const char* name;
    uint32_t bytes;
  } kStructs[] = {
      {"ckpt_config", sizeof(ckpt_config)},
      {"ckpt_device_info", sizeof(ckpt_device_info)},
      {"ckpt_file_info", sizeof(ckpt_file_info)},
      {"ckpt_file_location", sizeof(ckpt_file_location)},
      {"ckpt_read_piece", sizeof(ckpt_read_piece)},
      {"ckpt_read_progress", sizeof(ckpt_read_progress)},
      {"ckpt_copy_piece", sizeof(ckpt_copy_piece)},
      {"ckpt_h2d_piece", sizeof(ckpt_h2d_piece)},
      {"ckpt_gather_piece", sizeof(ckpt_gather_piece)},
      {"ckpt_p2p_piece", sizeof(ckpt_p2p_piece)},
  };
  if (name == nullptr) return 0;
  for (const auto& entry : kStructs) {
    if (strcmp(entry.name, name) == 0) return entry.bytes;
  }
  return 0;
}

int32_t ckpt_library_kind(char* text, uint32_t text_bytes) {
  return guard([&] { copy_text(backend::kind(), text, text_bytes); });
}

int32_t ckpt_last_error(char* text, uint32_t text_bytes) {
  return guard([&] { copy_text(last_error(), text, text_bytes); });
}

int32_t ckpt_setenv(const char* name, const char* value) {
  return guard([&] {
    if (setenv(&require(name, "name"), &require(value, "value"), 1) != 0) {
      fail_errno(errno == ENOMEM ? CKPT_ERR_MEMORY : CKPT_ERR_INVALID, errno, "setenv %s", name);
    }
  });
}

int32_t ckpt_init(const ckpt_config* config) {
  return guard([&] { initialize(require(config, "config")); });
}

int32_t ckpt_live_objects(uint32_t* count_p) {
  return guard([&] { require(count_p, "count_p") = HandleTable::instance().count(); });
}

int32_t ckpt_thread_bind(int32_t node, uint32_t* bound_p) {
  return guard([&] {
    uint32_t& out = require(bound_p, "bound_p");
    if (node < -1) fail(CKPT_ERR_INVALID, "node %d", node);
    out = bind_thread_to_node(node) ? 1 : 0;
  });
}

int32_t ckpt_signal_create(uint32_t* signal_p) {
  return guard([&] {
    uint32_t& out = require(signal_p, "signal_p");
    out = add_object(std::make_shared<Signal>());
  });
}

int32_t ckpt_signal_destroy(uint32_t signal) {
  return guard([&] { destroy_object<Signal>(signal); });
}

int32_t ckpt_signal_fd(uint32_t signal, int32_t* fd_p) {
  return guard([&] { require(fd_p, "fd_p") = find_object<Signal>(signal)->fd(); });
}

int32_t ckpt_signal_raise(uint32_t signal, uint32_t bits) {
  return guard([&] { find_object<Signal>(signal)->raise(bits); });
}

int32_t ckpt_signal_take(uint32_t signal, uint32_t* bits_p) {
  return guard([&] {
    uint32_t& out = require(bits_p, "bits_p");
    out = find_object<Signal>(signal)->take();
  });
}

int32_t ckpt_signal_reset(uint32_t signal) {
  return guard([&] { find_object<Signal>(signal)->reset(); });
}

int32_t ckpt_signal_wait(uint32_t signal, uint32_t timeout_ms, uint32_t* bits_p) {
  return guard([&] {
    uint32_t& out = require(bits_p, "bits_p");
    out = find_object<Signal>(signal)->wait(timeout_ms);
  });
}
