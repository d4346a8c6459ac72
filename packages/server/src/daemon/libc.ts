import { dlopen, type FFIFunction } from 'bun:ffi'
// Not the whole of core: a Worker that loads the schemas too takes half a second to start.
import { CkptError } from '@ckpt/core/api/errors'

/** glibc, then musl. */
const LIBC_NAMES = [
  'libc.so.6',
  `libc.musl-${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}.so.1`,
]

/** Functions of the C library. @throws CkptError `native_missing` */
export function openLibc<T extends Record<string, FFIFunction>>(functions: T) {
  const reasons: string[] = []
  for (const name of LIBC_NAMES) {
    try {
      return dlopen(name, functions).symbols
    } catch (error) {
      reasons.push(error instanceof Error ? error.message : String(error))
    }
  }
  const wanted = Object.keys(functions).join(', ')
  throw new CkptError('native_missing', `no C library for ${wanted}: ${reasons.join('; ')}`)
}
