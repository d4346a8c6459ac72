// NCCL as far as it is used. It is opened when it is first needed: the library loads without it,
// and is built without its headers.
#pragma once

#include <cstddef>
#include <string>

#include "cuda-api.h"

namespace ckpt {

struct Nccl {
  using Comm = struct ncclComm*;
  struct UniqueId {
    char internal[128];
  };
  // ncclConfig_t as of 2.18; newer versions take it by its size and version.
  struct Config {
    size_t size = sizeof(Config);
    unsigned magic = 0xcafebeef;
    unsigned version = 21800;
    int blocking = 0;
    int cga_cluster_size = kUndefined;
    int min_ctas = kUndefined;
    int max_ctas = kUndefined;
    const char* net_name = nullptr;
    int split_share = kUndefined;
  };
  static constexpr int kUndefined = -2147483647 - 1;
  // ncclResult_t and ncclDataType_t
  static constexpr int kSuccess = 0;
  static constexpr int kRemoteError = 6;
  static constexpr int kInProgress = 7;
  static constexpr int kUint8 = 1;

  int version;
  int (*get_unique_id)(UniqueId*);
  int (*comm_init_rank_config)(Comm*, int, UniqueId, int, Config*);
  int (*comm_get_async_error)(Comm, int*);
  int (*comm_abort)(Comm);
  int (*broadcast)(const void*, void*, size_t, int, int, Comm, cudaStream_t);
  const char* (*get_error_string)(int);
  const char* (*get_last_error)(Comm);

  // CKPT_ERR_UNSUPPORTED where there is none, or one that is too old.
  static const Nccl& get();
  // "2.28.9"
  std::string version_text() const;
  // CKPT_ERR_IO when another member's process, or the way there, is lost, else CKPT_ERR_DEVICE,
  // unless the result is success or in progress. comm may be null.
  void check(int result, Comm comm, const char* what) const;
};

}  // namespace ckpt
