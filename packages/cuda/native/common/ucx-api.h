// UCX as far as it is used: facts of its binary interface, which has been the same since 1.12
// (tests/ucx-api-test.cpp compares them with the headers where there are some). It is opened when
// it is first needed: the library loads without it, and is built without its headers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "error.h"

namespace ckpt {

struct Ucx {
  using Context = struct ucp_context*;
  using Config = struct ucp_config;
  using Worker = struct ucp_worker*;
  using Endpoint = struct ucp_ep*;
  using Address = struct ucp_address;
  using Memory = struct ucp_mem*;
  using RemoteKey = struct ucp_rkey*;
  // Null: done. Below kStatusLast as a pointer: a request that goes on. Else a status.
  using StatusPointer = void*;

  // ucs_status_t is an enum of one byte.
  using Status = int8_t;
  static constexpr Status kOk = 0;
  static constexpr Status kNoMemory = -4;
  static constexpr Status kUnreachable = -6;
  static constexpr Status kTruncated = -9;
  static constexpr Status kBusy = -15;
  static constexpr Status kCanceled = -16;
  static constexpr Status kUnsupported = -22;
  static constexpr Status kStatusLast = -100;

  // ucp_params_t
  struct Params {
    static constexpr uint64_t kFeatures = 1 << 0;
    static constexpr uint64_t kName = 1 << 8;
    static constexpr uint64_t kFeatureTag = 1 << 0;
    static constexpr uint64_t kFeatureRma = 1 << 1;
    static constexpr uint64_t kFeatureWakeup = 1 << 4;
    uint64_t field_mask;
    uint64_t features;
    size_t request_size;
    void (*request_init)(void*);
    void (*request_cleanup)(void*);
    uint64_t tag_sender_mask;
    int mt_workers_shared;
    size_t estimated_num_eps;
    size_t estimated_num_ppn;
    const char* name;
  };

  // ucp_worker_params_t
  struct WorkerParams {
    static constexpr uint64_t kThreadMode = 1 << 0;
    static constexpr uint64_t kFlags = 1 << 5;
    static constexpr int kSerialized = 1;
    static constexpr uint64_t kIgnoreRequestLeak = 1 << 0;
    uint64_t field_mask;
    int thread_mode;
    unsigned long cpu_mask[1024 / (8 * sizeof(unsigned long))];
    unsigned events;
    void* user_data;
    int event_fd;
    uint64_t flags;
    const char* name;
    size_t am_alignment;
    uint64_t client_id;
  };

  // ucp_err_handler_t
  struct ErrorHandler {
    void (*call)(void* argument, Endpoint, Status);
    void* argument;
  };

  // ucs_sock_addr_t
  struct SocketAddress {
    const void* address;
    uint32_t address_bytes;
  };

  // ucp_ep_params_t
  struct EndpointParams {
    static constexpr uint64_t kRemoteAddress = 1 << 0;
    static constexpr uint64_t kErrorMode = 1 << 1;
    static constexpr uint64_t kErrorHandler = 1 << 2;
    static constexpr int kErrorModePeer = 1;
    uint64_t field_mask;
    const Address* address;
    int error_mode;
    ErrorHandler error_handler;
    void* user_data;
    unsigned flags;
    SocketAddress socket_address;
    void* connection_request;
    const char* name;
    SocketAddress local_socket_address;
  };

  // ucp_tag_recv_info_t
  struct TagInfo {
    uint64_t sender_tag;
    size_t length;
  };

  // ucp_request_param_t
  struct RequestParams {
    static constexpr uint32_t kCallback = 1 << 1;
    static constexpr uint32_t kUserData = 1 << 2;
    static constexpr uint32_t kDatatype = 1 << 3;
    static constexpr uint32_t kFlags = 1 << 4;
    static constexpr uint32_t kMemoryType = 1 << 6;
    static constexpr uint32_t kMemory = 1 << 8;
    static constexpr uint32_t kNotAtOnce = 1 << 16;  // the callback is called in every case
    static constexpr uint32_t kCloseForce = 1 << 0;
    static constexpr int kHostMemory = 0;
    uint32_t mask;
    uint32_t flags;
    void* request;
    union {
      void (*sent)(void* request, Status, void* user_data);
      void (*received)(void* request, Status, const TagInfo*, void* user_data);
    };
    uint64_t datatype;
    void* user_data;
    void* reply_buffer;
    int memory_type;
    void* receive_info;
    Memory memory;
  };

  // ucp_generic_dt_ops_t, of receives
  struct Unpacking {
    void* (*start_pack)(void* context, const void* buffer, size_t count);
    void* (*start_unpack)(void* context, void* buffer, size_t count);
    size_t (*packed_bytes)(void* state);
    size_t (*pack)(void* state, size_t offset, void* to, size_t bytes);
    Status (*unpack)(void* state, size_t offset, const void* from, size_t bytes);
    void (*finish)(void* state);
  };

  // ucp_mem_map_params_t
  struct MapParams {
    static constexpr uint64_t kAddress = 1 << 0;
    static constexpr uint64_t kLength = 1 << 1;
    static constexpr uint64_t kProtection = 1 << 3;
    static constexpr uint64_t kMemoryType = 1 << 4;
    static constexpr unsigned kLocalRead = 1 << 0;
    static constexpr unsigned kLocalWrite = 1 << 1;
    static constexpr unsigned kRemoteRead = 1 << 8;
    uint64_t field_mask;
    void* address;
    size_t length;
    unsigned flags;
    unsigned protection;
    int memory_type;
  };

  const char* (*get_version_string)();
  const char* (*status_string)(Status);
  Status (*config_read)(const char* prefix, const char* file, Config**);
  Status (*config_modify)(Config*, const char* name, const char* value);
  void (*config_release)(Config*);
  Status (*init_version)(unsigned major, unsigned minor, const Params*, const Config*, Context*);
  void (*cleanup)(Context);
  Status (*worker_create)(Context, const WorkerParams*, Worker*);
  void (*worker_destroy)(Worker);
  Status (*worker_get_address)(Worker, Address**, size_t* bytes);
  void (*worker_release_address)(Worker, Address*);
  unsigned (*worker_progress)(Worker);
  Status (*worker_get_efd)(Worker, int*);
  Status (*worker_arm)(Worker);
  Status (*ep_create)(Worker, const EndpointParams*, Endpoint*);
  StatusPointer (*ep_close_nbx)(Endpoint, const RequestParams*);
  void (*ep_print_info)(Endpoint, FILE*);
  StatusPointer (*tag_send_nbx)(Endpoint, const void*, size_t, uint64_t tag, const RequestParams*);
  StatusPointer (*tag_send_sync_nbx)(Endpoint, const void*, size_t, uint64_t tag,
                                     const RequestParams*);
  StatusPointer (*tag_recv_nbx)(Worker, void*, size_t, uint64_t tag, uint64_t mask,
                                const RequestParams*);
  StatusPointer (*get_nbx)(Endpoint, void*, size_t, uint64_t remote_address, RemoteKey,
                           const RequestParams*);
  Status (*dt_create_generic)(const Unpacking*, void* context, uint64_t* datatype);
  Status (*mem_map)(Context, const MapParams*, Memory*);
  Status (*mem_unmap)(Context, Memory);
  Status (*rkey_pack)(Context, Memory, void** bytes, size_t* count);
  void (*rkey_buffer_release)(void*);
  Status (*ep_rkey_unpack)(Endpoint, const void*, RemoteKey*);
  void (*rkey_destroy)(RemoteKey);
  Status (*request_check_status)(void*);
  void (*request_cancel)(Worker, void*);
  void (*request_free)(void*);

  // CKPT_ERR_UNSUPPORTED with the reason where there is none, or one that is too old.
  static const Ucx& get();

  static bool is_request(StatusPointer pointer) {
    return pointer != nullptr && !is_error(pointer);
  }
  static bool is_error(StatusPointer pointer) {
    return reinterpret_cast<uintptr_t>(pointer) >=
           static_cast<uintptr_t>(static_cast<intptr_t>(kStatusLast));
  }
  static Status status_of(StatusPointer pointer) {
    return static_cast<Status>(reinterpret_cast<intptr_t>(pointer));
  }
  // What a failure is to the caller of the C ABI.
  Error error_of(Status status, const char* what) const;
  void check(Status status, const char* what) const {
    if (status < 0) throw error_of(status, what);
  }
};

}  // namespace ckpt
