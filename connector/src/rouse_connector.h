// librouse_connector: the engine's side of the engine socket and of the weight arenas, as a C ABI.
//
// The library carries bytes, descriptors and mappings and knows nothing of what they mean: the
// conversation itself (docs/protocols.md, section 3) is spoken by its caller.
//
// Errors: a function that can fail returns a negative errno value and leaves a text that says what
// failed and what to do in rouse_last_error(). No exception crosses this interface.
// Threads: every function may be called from any thread; one socket or one arena must not be used
// by two threads at once.
// Ownership: a descriptor that a function returns belongs to the caller; a descriptor that the
// caller passes in stays the caller's (the kernel keeps what a mapping or a message needs).
// Sizes and offsets are bytes, times are milliseconds; a negative timeout means "no limit".

#ifndef ROUSE_CONNECTOR_H_
#define ROUSE_CONNECTOR_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ROUSE_EXPORT __attribute__((visibility("default")))

/// Raised with every incompatible change of this header; compare it with rouse_abi_version().
#define ROUSE_ABI_VERSION 1

/// Limits of one message, in bytes and in descriptors beside it. Both sides refuse more.
#define ROUSE_MAX_MESSAGE_BYTES (128 * 1024)
#define ROUSE_MAX_MESSAGE_FDS 64

/// The ROUSE_ABI_VERSION that the library was built with.
ROUSE_EXPORT int rouse_abi_version(void);

/// Why the last function that failed in this thread failed. Never null; valid until the next call
/// of this library in the same thread.
ROUSE_EXPORT const char* rouse_last_error(void);

// ---- Socket ------------------------------------------------------------------------------------

/// Connects to the SOCK_SEQPACKET socket at `path`, trying again until somebody listens there or
/// the time is up. Returns the socket; close it with close().
/// -ETIMEDOUT: nobody listened in time. -ENAMETOOLONG: the path cannot be a socket's.
ROUSE_EXPORT int rouse_connect(const char* path, int timeout_ms);

/// Sends one message with `fd_count` descriptors beside it. All or nothing.
/// -EMSGSIZE: more than the limits above. -EPIPE, -ECONNRESET: the peer is gone.
ROUSE_EXPORT int rouse_send(int socket, const void* message, size_t bytes, const int* fds,
                            size_t fd_count, int timeout_ms);

/// Receives one message of at most `capacity` bytes and `fd_capacity` descriptors. On success
/// `*bytes` and `*fd_count` say what came and the descriptors (close-on-exec) are the caller's; on
/// failure every descriptor that came is closed already, `*bytes` and `*fd_count` are 0.
/// -EMSGSIZE: the message or its descriptors did not fit and are lost. -ECONNRESET: the peer closed
/// the connection. -ETIMEDOUT. -EINTR: a signal came first; nothing is lost, call again.
ROUSE_EXPORT int rouse_receive(int socket, void* message, size_t capacity, size_t* bytes, int* fds,
                               size_t fd_capacity, size_t* fd_count, int timeout_ms);

// ---- Documents that are larger than a message ---------------------------------------------------

/// A memfd that holds a copy of the document and is sealed against every change. Close it with
/// close().
ROUSE_EXPORT int rouse_document_create(const void* document, size_t bytes);

/// Copies the whole content of `fd`, which must be exactly `bytes` long (-EINVAL otherwise).
ROUSE_EXPORT int rouse_document_read(int fd, void* document, size_t bytes);

// ---- Arenas
// --------------------------------------------------------------------------------------

/// One contiguous range of addresses that slabs are mapped into.
typedef struct rouse_arena rouse_arena;

/// How a slab is mapped.
enum rouse_mapping {
  ROUSE_MAP_SHARED = 1,   ///< Writes reach the slab. For filling it, before it is published.
  ROUSE_MAP_PRIVATE = 2,  ///< Writes stay in this process (copy-on-write).
  ROUSE_MAP_READ = 3,     ///< Shows the slab as it is at any time; writing is a fault.
};

/// Reserves a range of `bytes`, at the page-aligned address `at` or, with null, anywhere at a 2 MiB
/// boundary. Nothing is mapped: touching the range is a fault. Free it with rouse_arena_free().
/// -EEXIST: something is mapped at `at` already.
ROUSE_EXPORT int rouse_arena_reserve(size_t bytes, void* at, rouse_arena** arena);

/// The first address of the range.
ROUSE_EXPORT void* rouse_arena_address(const rouse_arena* arena);

/// Maps the first `bytes` of the slab `fd` at `offset` in the range, in place of what is there.
/// -EINVAL: `offset` is not a multiple of the page size, the slab does not fit into the range, or
/// the file is shorter than `bytes` (touching the rest would kill the process).
ROUSE_EXPORT int rouse_arena_map(rouse_arena* arena, size_t offset, size_t bytes, int fd,
                                 enum rouse_mapping mapping);

/// Has the GPU whose context is current read the range, which ROUSE_MAP_READ covers whole, at the
/// speed of its link: what copies it to the GPU need not copy it in this process first. Until the
/// slabs are unmapped or the range is freed, before which no such copy may be under way any more;
/// nothing is mapped in it meanwhile. -ENODEV, -ENOMEM, -EINVAL and -EIO as for GPU arenas, below;
/// copies work all the same then, only slower.
ROUSE_EXPORT int rouse_arena_pin(rouse_arena* arena);

/// Unmaps all slabs and keeps the range reserved, so that they may come back at the same addresses.
ROUSE_EXPORT int rouse_arena_unmap(rouse_arena* arena);

/// Unmaps everything and gives the range back; null is ignored. Nothing may use the range any more.
ROUSE_EXPORT void rouse_arena_free(rouse_arena* arena);

// ---- Arenas in GPU memory
// ------------------------------------------------------------------------

/// One contiguous range of GPU addresses that slabs (descriptors of cuMemCreate memory) are mapped
/// into. All functions need the CUDA context of the same GPU to be current in the calling thread,
/// which torch sees to. libcuda is opened at the first call.
///
/// Errors: -ENODEV: no driver, one that is too old, or no context is current. -ENOMEM, -EINVAL;
/// -EIO: what else CUDA says, by name in the text.
typedef struct rouse_gpu_arena rouse_gpu_arena;

/// What this process may do with a mapped slab. There is no copy-on-write on a GPU: what is written
/// reaches everybody.
enum rouse_gpu_access {
  ROUSE_GPU_READ = 1,        ///< A kernel that writes is a fault, and the context is lost.
  ROUSE_GPU_READ_WRITE = 2,  ///< For filling it, before it is published.
};

/// Reserves a range of `bytes` on the current GPU, at the address `at` or, with 0, anywhere.
/// Nothing is mapped. Free it with rouse_gpu_arena_free(). -EEXIST: `at` is not to be had.
ROUSE_EXPORT int rouse_gpu_arena_reserve(size_t bytes, uint64_t at, rouse_gpu_arena** arena);

/// The first address of the range.
ROUSE_EXPORT uint64_t rouse_gpu_arena_address(const rouse_gpu_arena* arena);

/// Maps the slab `fd` of `bytes` at `offset` in the range. The slab may be another GPU's that this
/// one reaches. -EINVAL: `offset` is not a multiple of the GPU's granularity (2 MiB), or the slab
/// does not fit into the range. -EEXIST: a slab is mapped there.
ROUSE_EXPORT int rouse_gpu_arena_map(rouse_gpu_arena* arena, size_t offset, size_t bytes, int fd,
                                     enum rouse_gpu_access access);

/// Waits for all work on the GPU, then takes the right to write to the mapped slabs from this
/// process.
ROUSE_EXPORT int rouse_gpu_arena_protect(rouse_gpu_arena* arena);

/// Waits for all work on the GPU, then unmaps all slabs and keeps the range reserved, so that they
/// may come back at the same addresses.
ROUSE_EXPORT int rouse_gpu_arena_unmap(rouse_gpu_arena* arena);

/// Unmaps everything and gives the range back; null is ignored. Nothing may use the range any more.
ROUSE_EXPORT void rouse_gpu_arena_free(rouse_gpu_arena* arena);

// ---- GPU memory that can be given back
// -----------------------------------------------------------

/// The process's one pool, on the GPU that is current when it is first used: memory that can be
/// given back to the GPU and taken again at the same addresses. The first two functions are what
/// torch's CUDAPluggableAllocator calls. Any thread may call any of these; contexts and errors are
/// as above.

/// Memory of `bytes`, rounded up to the GPU's granularity (2 MiB), with any content. Null when
/// there is none, or while the pool's memory is given back. `device` and `stream` are torch's, not
/// needed.
ROUSE_EXPORT void* rouse_gpu_pool_allocate(size_t bytes, int device, void* stream);

/// Waits for all work on the GPU, then frees what rouse_gpu_pool_allocate() returned.
ROUSE_EXPORT void rouse_gpu_pool_free(void* address, size_t bytes, int device, void* stream);

/// Waits for all work on the GPU, then gives the memory of every allocation back. The addresses
/// stay the pool's and must not be touched until rouse_gpu_pool_restore(). Twice is as once.
ROUSE_EXPORT int rouse_gpu_pool_release(void);

/// Takes memory for every allocation again, at the addresses that they had. It is being filled with
/// zeros on the legacy default stream when this returns: wait for the GPU before using it. On
/// failure (-ENOMEM: others use it) nothing is taken. Without a release it does nothing.
ROUSE_EXPORT int rouse_gpu_pool_restore(void);

/// How many bytes are allocated, be they given back or not.
ROUSE_EXPORT size_t rouse_gpu_pool_bytes(void);

// ---- GPU memory that stands in for weights
// -------------------------------------------------------

/// Memory for a model that is built to be given its weights from elsewhere: what is allocated while
/// it is built and processed takes hardly any memory, because all large allocations share the same.
/// Whatever is written to one is overwritten by the next: such tensors must be pointed elsewhere,
/// or be dropped, before anything is computed of their values. The first two functions are what
/// torch's CUDAPluggableAllocator calls. Any thread may call any of these; contexts and errors are
/// as above.

/// Allocations of at least so many bytes are large. Less is memory as ever: torch puts small
/// tensors, whose values may matter, together in segments of up to 20 MiB.
#define ROUSE_GPU_STAND_IN_LEAST ((20u << 20) + 1)

/// Null when there is none. `device` and `stream` are torch's, not needed.
ROUSE_EXPORT void* rouse_gpu_stand_in_allocate(size_t bytes, int device, void* stream);

/// Waits for all work on the GPU, then frees what rouse_gpu_stand_in_allocate() returned. With the
/// last large allocation goes what they share.
ROUSE_EXPORT void rouse_gpu_stand_in_free(void* address, size_t bytes, int device, void* stream);

/// 1 if the address is in a large allocation, else 0.
ROUSE_EXPORT int rouse_gpu_stand_in_holds(uint64_t address);

/// Bytes of all large allocations that have not been freed.
ROUSE_EXPORT size_t rouse_gpu_stand_in_bytes(void);

// ---- Stacks
// --------------------------------------------------------------------------------------

/// Waits for all work on the GPU, then has each thread on it have a stack of `bytes`; `*before` is
/// what it was. A context holds memory for as many of them as fit on the GPU, half of all that it
/// takes (260 MiB of an H200's, with 1 KiB each). A kernel that needs more has the driver take it
/// when it is launched. Contexts and errors are as above.
ROUSE_EXPORT int rouse_gpu_set_stack(size_t bytes, size_t* before);

#ifdef __cplusplus
}
#endif

#endif  // ROUSE_CONNECTOR_H_
