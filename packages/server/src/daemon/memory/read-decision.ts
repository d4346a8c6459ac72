import type { FileReads } from '@ckpt/core/api/checkpoint-schemas'
import type { FileLocation } from '@ckpt/cuda'

/** How the bytes of a file come into host memory, and why. */
export type ReadDecision = Pick<FileReads, 'how' | 'reason'>

/** What a decision looks at. */
export interface ReadQuestion extends FileLocation {
  /** Size of the file. */
  readonly bytes: number
  /** The file is held in place: nothing is left to decide. */
  readonly mapped: boolean
}

/** Less is read in one go, and brings nothing into the page cache that anybody would miss. */
export const DIRECT_BYTES_MIN = 2 ** 20
/** Where so much of a file is cached, reading the cache is worth more than passing it. */
export const CACHED_FRACTION_MIN = 0.5

/** `f_type` of statfs(2), from linux/magic.h. */
const MEMORY_FILESYSTEMS: ReadonlySet<number> = new Set([
  0x01021994, // tmpfs
  0x858458f6, // ramfs
  0x958458f6, // hugetlbfs
])

/**
 * File systems on a disk of this machine. Over a network, and through FUSE, a server has a cache of its own and O_DIRECT means
 * what each of them likes.
 */
const DISK_FILESYSTEMS: ReadonlySet<number> = new Set([
  0xef53, // ext2, ext3, ext4
  0x58465342, // xfs
  0x9123683e, // btrfs
  0xf2f52010, // f2fs
  0xca451a4e, // bcachefs
  0x794c7630, // overlayfs
])

/** Decides how a file is read. `direct` is what to try: {@link DIRECT_REFUSED} when the file system or its device refuses. */
export function decideRead(question: ReadQuestion): ReadDecision {
  const { bytes, mapped, filesystem, cachedFraction } = question
  if (mapped) return { how: 'mapped', reason: 'in place' }
  if (MEMORY_FILESYSTEMS.has(filesystem)) return { how: 'read', reason: 'in shared memory (tmpfs)' }
  if (bytes < DIRECT_BYTES_MIN) return { how: 'read', reason: 'small' }
  if (cachedFraction === null) {
    return { how: 'read', reason: 'the kernel does not tell whether it is cached' }
  }
  if (cachedFraction >= CACHED_FRACTION_MIN) return { how: 'read', reason: 'in the page cache' }
  if (!DISK_FILESYSTEMS.has(filesystem)) {
    return { how: 'read', reason: 'not cached, on a file system that is not known to be on a disk' }
  }
  return { how: 'direct', reason: 'not cached' }
}

export const DIRECT_REFUSED: ReadDecision = { how: 'read', reason: 'not cached, O_DIRECT refused' }

/** One entry for each way and reason, in the order in which they first come. `bytes`: of the tensors of a file. */
export function groupReads(files: readonly (ReadDecision & { bytes: number })[]): FileReads[] {
  const groups = new Map<string, FileReads>()
  for (const { how, reason, bytes } of files) {
    const key = `${how} ${reason}`
    const group = groups.get(key) ?? { how, files: 0, bytes: 0, reason }
    groups.set(key, { ...group, files: group.files + 1, bytes: group.bytes + bytes })
  }
  return [...groups.values()]
}
