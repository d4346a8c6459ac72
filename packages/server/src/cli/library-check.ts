import { dlopen } from 'bun:ffi'

/** A library of another project that is opened at run time. */
export interface FoundLibrary {
  /** As the dynamic loader knows it. */
  readonly name: string
  /** Null: it does not say. */
  readonly version: string | null
}

/** The first of these NCCLs that the dynamic loader opens, with what it says of itself. */
export function openNccl(names: readonly string[]): FoundLibrary | null {
  return firstOf(names, (name) => {
    const { symbols } = dlopen(name, { ncclGetVersion: { args: ['buffer'], returns: 'i32' } })
    const code = new Int32Array(1)
    const known = symbols.ncclGetVersion(code) === 0
    return known ? ncclVersion(code[0] as number) : null
  })
}

/** The first of these UCXs. */
export function openUcx(names: readonly string[]): FoundLibrary | null {
  return firstOf(names, (name) => {
    const { symbols } = dlopen(name, { ucp_get_version_string: { args: [], returns: 'cstring' } })
    return `${symbols.ucp_get_version_string()}`
  })
}

/** 22809 is 2.28.9; before 2.9 there was one digit fewer: 2804 is 2.8.4. */
export function ncclVersion(code: number): string {
  const unit = code < 10_000 ? 1000 : 10_000
  const [major, rest] = [Math.floor(code / unit), code % unit]
  return [major, Math.floor(rest / 100), rest % 100].join('.')
}

function firstOf(
  names: readonly string[],
  version: (name: string) => string | null,
): FoundLibrary | null {
  for (const name of names) {
    try {
      return { name, version: version(name) }
    } catch (error) {
      // not there, or of another machine: the next name; else one that does not tell
      if ((error as { code?: string }).code !== 'ERR_DLOPEN_FAILED') return { name, version: null }
    }
  }
  return null
}
