import { usageError } from './exit.ts'

/** What `--trace FILE` asks for. @throws UsageError where it cannot be written */
export async function writeTrace(path: string, trace: object): Promise<void> {
  try {
    await Bun.write(path, JSON.stringify(trace))
  } catch (error) {
    throw usageError(`--trace ${path} cannot be written: ${(error as Error).message}`)
  }
}
