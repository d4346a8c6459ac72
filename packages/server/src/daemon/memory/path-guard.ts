import { closeSync, constants, fstatSync, openSync, readlinkSync, realpathSync } from 'node:fs'
import { dirname, isAbsolute, resolve, sep } from 'node:path'
import { CkptError } from '@ckpt/core/api/errors'
import type { FileInfo, Handle, Library } from '@ckpt/cuda'

export interface OpenedFile {
  readonly file: Handle
  readonly info: FileInfo
  /** As it was asked for. */
  readonly path: string
  /** Without symbolic links. */
  readonly realPath: string
}

/** The most directories of a path: Linux takes 4095 bytes. */
const PATH_DEPTH_MAX = 2048
// a FIFO must not block, a terminal must not become ours, the last component was resolved already
const OPEN_FLAGS =
  constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY | constants.O_NOFOLLOW

/**
 * Opens files, from allowed directories only. Symbolic links are resolved first; what counts is the path of the file that
 * the kernel has opened, so a link that is changed in between opens nothing outside.
 */
export class PathGuard {
  readonly #dirs: readonly string[] | null

  /** `dirs`: null allows any path. */
  constructor(dirs: readonly string[] | null) {
    this.#dirs = dirs?.map(resolvedDir) ?? null
  }

  /**
   * @throws CkptError `path_not_allowed`, `file_not_found`, `file_unreadable`, `file_changed` (replaced meanwhile),
   *   `bad_request` (a relative path)
   */
  open(library: Library, path: string): OpenedFile {
    if (!isAbsolute(path) || path.includes('\0')) {
      throw new CkptError('bad_request', `${path}: an absolute path is wanted`)
    }
    const expected = this.#resolve(path)
    let descriptor: number
    try {
      descriptor = openSync(expected, OPEN_FLAGS)
    } catch (error) {
      throw unreadable(path, error)
    }
    try {
      const stat = fstatSync(descriptor, { bigint: true })
      const realPath = readlinkSync(`/proc/self/fd/${descriptor}`)
      this.#require(path, realPath)
      if (!stat.isFile()) {
        const kind = stat.isDirectory() ? 'a directory' : 'not a regular file'
        throw new CkptError('file_unreadable', `${path}: is ${kind}`)
      }
      const file = library.fileOpen(realPath)
      try {
        const info = library.fileDescribe(file)
        if (info.inode !== stat.ino || info.device !== stat.dev) {
          throw new CkptError('file_changed', `${path}: was replaced while it was being opened`)
        }
        return { file, info, path, realPath }
      } catch (error) {
        library.fileClose(file)
        throw error
      }
    } finally {
      closeSync(descriptor)
    }
  }

  #resolve(path: string): string {
    try {
      const realPath = realpathSync(path)
      this.#require(path, realPath)
      return realPath
    } catch (error) {
      if (error instanceof CkptError) throw error
      // whether a file exists outside is told to nobody
      this.#require(path, nearestExisting(path))
      throw unreadable(path, error)
    }
  }

  #require(path: string, realPath: string): void {
    if (this.#dirs === null || this.#dirs.some((dir) => isInside(realPath, dir))) return
    throw new CkptError(
      'path_not_allowed',
      `${path}: is outside the directories that files may be registered from (${this.#dirs.join(', ')})`,
    )
  }
}

function isInside(path: string, dir: string): boolean {
  return path === dir || path.startsWith(dir.endsWith(sep) ? dir : dir + sep)
}

function resolvedDir(dir: string): string {
  try {
    return realpathSync(dir)
  } catch {
    return resolve(dir)
  }
}

function nearestExisting(path: string): string {
  let dir = resolve(path)
  for (let depth = 0; depth < PATH_DEPTH_MAX; depth++) {
    try {
      return realpathSync(dir)
    } catch {
      dir = dirname(dir)
    }
  }
  return sep
}

function unreadable(path: string, error: unknown): CkptError {
  const code = (error as NodeJS.ErrnoException).code
  if (code === 'ENOENT' || code === 'ENOTDIR') {
    return new CkptError('file_not_found', `${path}: no such file`)
  }
  if (code === 'EACCES' || code === 'EPERM') {
    return new CkptError('file_unreadable', `${path}: permission denied`)
  }
  if (code === 'ELOOP') {
    return new CkptError('file_unreadable', `${path}: symbolic links lead nowhere`)
  }
  return new CkptError(
    'file_unreadable',
    `${path}: ${error instanceof Error ? error.message : error}`,
  )
}
