import { type CostRates, DEFAULT_RATES, type PlanRate, planRates } from '@ckpt/core'
import type { LibraryOptions, RankInfo } from '../types.ts'
import { NO_RATES, type RatesDocument, RatesFile } from './rates-file.ts'

/** Devices that are remembered: the host library's get new names with every boot of the machine. */
const DEVICES_MAX = 64

/** What this daemon and those before it have found out about its devices: new plans are made with it. */
export class RateBook {
  readonly #library: LibraryOptions['kind']
  readonly #file: RatesFile
  #document: RatesDocument = NO_RATES

  private constructor(library: LibraryOptions['kind'], file: RatesFile) {
    this.#library = library
    this.#file = file
  }

  static async open(stateDir: string, library: LibraryOptions['kind']): Promise<RateBook> {
    const book = new RateBook(library, new RatesFile(stateDir))
    book.#document = await book.#file.read()
    return book
  }

  /** What an update of these ranks is planned with. */
  ratesOf(ranks: readonly RankInfo[]): CostRates {
    return planRates({ h2dBytesPerSecond: ranks.map(({ uuid }) => this.h2dBytesPerSecond(uuid)) })
  }

  /** null: the device was not measured yet. */
  h2dBytesPerSecond(uuid: string): number | null {
    const known = this.#document.devices.find((one) => this.#is(one, uuid))
    return known?.h2d_bytes_per_second ?? null
  }

  h2d(uuid: string): PlanRate {
    const rate = this.h2dBytesPerSecond(uuid)
    return rate === null
      ? { bytes_per_second: DEFAULT_RATES.h2dBytesPerSecond, from: 'default' }
      : { bytes_per_second: rate, from: 'measured' }
  }

  /** Kept from now on, also by later daemons of this state directory. */
  async measured(uuid: string, bytesPerSecond: number): Promise<void> {
    const others = this.#document.devices.filter((one) => !this.#is(one, uuid))
    const device = { uuid, library: this.#library, h2d_bytes_per_second: bytesPerSecond }
    const devices = [...others, device].slice(-DEVICES_MAX)
    this.#document = { ...this.#document, devices }
    await this.#file.write(this.#document)
  }

  #is(one: RatesDocument['devices'][number], uuid: string): boolean {
    return one.uuid === uuid && one.library === this.#library
  }

  close(): Promise<void> {
    return this.#file.close()
  }
}
