import { readFile, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { BYTES_PER_SECOND_MAX, BYTES_PER_SECOND_MIN } from '@ckpt/core'
import { type } from 'arktype'
import { log } from '../log.ts'

const FILE = 'rates.json'

const BytesPerSecond = type(`${BYTES_PER_SECOND_MIN} <= number <= ${BYTES_PER_SECOND_MAX}`)

/** A device of one native library: what the host library's devices are called is no GPU's name. */
const DeviceRates = type({
  '+': 'reject',
  uuid: 'string',
  library: "'host' | 'cuda'",
  h2d_bytes_per_second: BytesPerSecond,
})
export type DeviceRates = typeof DeviceRates.infer

/** A broadcast within one group of ranks, and what the last updates made of it. */
const BroadcastRates = type({
  '+': 'reject',
  /** Of each rank, in their order. */
  uuids: 'string[]',
  library: "'host' | 'cuda'",
  bytes_per_second: BytesPerSecond.array(),
})
export type BroadcastRates = typeof BroadcastRates.infer

const Seconds = type('0 <= number <= 10')

/** An engine, and what the last updates told of it. */
const LearntEngine = type({
  '+': 'reject',
  key: 'string',
  learnt: type({
    '+': 'reject',
    bucket_s: Seconds,
    tensor_s: Seconds,
    reload_bytes_per_second: 'number > 0',
  }).array(),
})
export type LearntEngine = typeof LearntEngine.infer

/** The entry that was written last is the last one of its list. */
export const RatesDocument = type({
  '+': 'reject',
  format: '1',
  devices: DeviceRates.array(),
  broadcasts: BroadcastRates.array(),
  engines: LearntEngine.array(),
})
export type RatesDocument = typeof RatesDocument.infer

export const NO_RATES: RatesDocument = { format: 1, devices: [], broadcasts: [], engines: [] }

/** Names of staged files must differ in the whole process: two files of one directory may be open in it. */
let writes = 0

/**
 * What a daemon has found out about its devices and engines, in `STATE_DIR/rates.json`. Replaced as a whole by a rename, so a reader sees one
 * version or the other. Losing it costs a measurement, so nothing about it is an error.
 */
export class RatesFile {
  readonly #path: string
  #writing: Promise<void> = Promise.resolve()

  constructor(stateDir: string) {
    this.#path = join(stateDir, FILE)
  }

  /** Nothing, where there is no file or not one of ours. */
  async read(): Promise<RatesDocument> {
    let value: unknown
    try {
      value = JSON.parse(await readFile(this.#path, 'utf8'))
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException
      if (code !== 'ENOENT') this.#ignored(message)
      return NO_RATES
    }
    const document = RatesDocument(value)
    if (!(document instanceof type.errors)) return document
    this.#ignored(document.summary)
    return NO_RATES
  }

  #ignored(reason: string): void {
    log.warn('{path} is ignored, the devices are measured again: {reason}', {
      path: this.#path,
      reason,
    })
  }

  /** Resolves also when it could not be written. The document is taken as it is now. */
  write(document: RatesDocument): Promise<void> {
    const text = `${JSON.stringify(document, null, 2)}\n`
    const staged = `${this.#path}.${process.pid}.${writes++}`
    this.#writing = this.#writing
      .then(async () => {
        await writeFile(staged, text, { mode: 0o600 })
        await rename(staged, this.#path)
      })
      .catch((error: Error) => {
        log.warn('{path} was not written: {reason}', { path: this.#path, reason: error.message })
      })
    return this.#writing
  }

  /** Until everything is written. */
  async close(): Promise<void> {
    await this.#writing
  }
}
