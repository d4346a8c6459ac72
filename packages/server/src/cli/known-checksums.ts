import { mkdir } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { CkptError } from '@ckpt/core'
import { type } from 'arktype'
import { stateRoot } from '../daemon/options.ts'
import { replaceFile } from '../daemon/updates/replace-file.ts'

/** The checkpoints that were verified last. */
const CHECKPOINTS_MAX = 256

/** By the digest of a checkpoint's files, by the layout of a rank: what it came to the first time, and when that was. */
const Known = type({
  '[string]': { '[string]': { checksum: 'string', at: 'string' } },
})
type Known = typeof Known.infer

/** Checksums of engines that had loaded known files, in `checksums.json` of the state directory. */
export class KnownChecksums {
  readonly path: string
  readonly #known: Known

  private constructor(path: string, known: Known) {
    this.path = path
    this.#known = known
  }

  /** @throws CkptError `bad_request` when the file cannot be read */
  static async open(path = join(stateRoot(), 'checksums.json')): Promise<KnownChecksums> {
    const file = Bun.file(path)
    if (!(await file.exists())) return new KnownChecksums(path, {})
    const known = Known(await file.json().catch(() => null))
    if (known instanceof type.errors) {
      throw new CkptError('bad_request', `${path} has no checksums that can be read: remove it`)
    }
    return new KnownChecksums(path, known)
  }

  /** What was recorded, or null where this is the first time, which is recorded now. */
  compare(
    digest: string,
    layout: string,
    checksum: string,
  ): { checksum: string; at: string } | null {
    const of = this.#known[digest] ?? {}
    const before = of[layout]
    if (before !== undefined) return before
    // the last one that was added to comes last
    delete this.#known[digest]
    this.#known[digest] = { ...of, [layout]: { checksum, at: new Date().toISOString() } }
    const [oldest, ...others] = Object.keys(this.#known)
    if (others.length >= CHECKPOINTS_MAX && oldest !== undefined) delete this.#known[oldest]
    return null
  }

  async save(): Promise<void> {
    await mkdir(dirname(this.path), { recursive: true, mode: 0o700 })
    await replaceFile(this.path, `${JSON.stringify(this.#known, null, 1)}\n`)
  }
}
