import { dlopen } from 'bun:ffi'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { CkptError } from '@ckpt/core/api/errors'
import { ABI_VERSION, STRUCTS, SYMBOLS } from './generated.ts'
import { cString, cText } from './structs.ts'
import { FfiTrace } from './trace.ts'

type FfiArgument = number | Uint8Array | Uint32Array | BigUint64Array

export type SymbolName = keyof typeof SYMBOLS
/** Every function of the library with its arguments checked. */
export type NativeCalls = Record<SymbolName, (...args: FfiArgument[]) => number>

const BUILD_COMMAND = 'build it with `npm run setup` (or `bun run build` after it)'

/** Directory of the libraries: `CKPT_LIBRARY_DIR`, else `packages/cuda/lib`. A bundle needs the former. */
export function libraryDir(): string {
  return process.env.CKPT_LIBRARY_DIR || join(import.meta.dir, '..', 'lib')
}

/** Opens `libckpt_<kind>.so` and checks ABI version, struct sizes and kind. Throws `native_missing`. */
export function openSymbols(kind: 'host' | 'cuda'): NativeCalls {
  const path = join(libraryDir(), `libckpt_${kind}.so`)
  if (!existsSync(path)) {
    throw new CkptError('native_missing', `${path} is not there: ${BUILD_COMMAND}`)
  }
  let raw: Record<string, (...args: FfiArgument[]) => number>
  try {
    raw = dlopen(path, SYMBOLS).symbols as unknown as typeof raw
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error)
    throw new CkptError('native_missing', `${path} cannot be loaded (${reason}): ${BUILD_COMMAND}`)
  }
  const calls = guardAll(raw)
  checkAbi(path, kind, calls)
  return calls
}

function checkAbi(path: string, kind: string, calls: NativeCalls): void {
  const mismatch = (what: string) =>
    new CkptError('native_missing', `${path} does not fit this program (${what}): ${BUILD_COMMAND}`)
  const version = calls.ckpt_abi_version()
  if (version !== ABI_VERSION) throw mismatch(`ABI version ${version}, not ${ABI_VERSION}`)
  for (const struct of Object.values(STRUCTS)) {
    const bytes = calls.ckpt_struct_bytes(cString(struct.name))
    if (bytes !== struct.bytes) {
      throw mismatch(`${struct.name} has ${bytes} bytes, not ${struct.bytes}`)
    }
  }
  const text = new Uint8Array(new ArrayBuffer(64))
  calls.ckpt_library_kind(text, text.length)
  if (cText(text) !== kind) throw mismatch(`it is the ${cText(text)} library`)
}

function guardAll(raw: Record<string, (...args: FfiArgument[]) => number>): NativeCalls {
  const trace = FfiTrace.fromEnvironment()
  const calls: Partial<NativeCalls> = {}
  for (const name of Object.keys(SYMBOLS) as SymbolName[]) {
    const call = raw[name]
    if (call === undefined) throw new CkptError('native_missing', `${name} is not in the library`)
    const checked = guardArguments(name, SYMBOLS[name].args, call)
    calls[name] = trace === null ? checked : trace.wrap(name, checked)
  }
  return calls as NativeCalls
}

/** Integers out of range wrap silently in `bun:ffi`, so they are checked here. `u64` takes safe integers as numbers. */
function guardArguments(
  symbol: string,
  types: readonly string[],
  call: (...args: FfiArgument[]) => number,
): (...args: FfiArgument[]) => number {
  return (...args) => {
    if (args.length !== types.length) {
      throw new RangeError(`${symbol} takes ${types.length} arguments, not ${args.length}`)
    }
    for (let i = 0; i < args.length; i++) {
      const value = args[i]
      const fits = types[i] === 'buffer' ? isAddressable(value) : isInteger(value, types[i])
      if (!fits) throw new RangeError(`${symbol}: argument ${i} (${types[i]}) is ${String(value)}`)
    }
    return call(...args)
  }
}

function isAddressable(value: FfiArgument | undefined): boolean {
  return ArrayBuffer.isView(value) && value.byteLength > 0
}

function isInteger(value: FfiArgument | undefined, type: string | undefined): boolean {
  if (typeof value !== 'number' || !Number.isSafeInteger(value)) return false
  if (type === 'i32') return value === (value | 0)
  if (value < 0) return false
  return type === 'u64' || value <= 0xffffffff
}
