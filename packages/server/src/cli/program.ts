import { Command } from 'commander'
import manifest from '../../package.json' with { type: 'json' }
import { addAbortCommand } from './abort.ts'
import { addDemoCommand } from './demo.ts'
import { addDoctorCommand } from './doctor.ts'
import { addEngineCommand } from './engine.ts'
import { addEngineMapCommand } from './engine-map.ts'
import { addJoinCommand } from './join.ts'
import { addLsCommand } from './ls.ts'
import { addPlanCommand } from './plan.ts'
import { addRmCommand } from './rm.ts'
import { addServeCommand } from './serve.ts'
import { addStatusCommand } from './status.ts'
import { addUpdateCommand } from './update.ts'

const EXIT_CODES = `
Exit codes: 0 done, 1 the job failed, 2 wrong usage, 3 the daemon or engine cannot be reached, 4 the device is lost.
Every command takes --json.`

/** `ckpt` with all its commands. Wrong usage throws a CommanderError instead of ending the process. */
export function createProgram(): Command {
  const program = new Command('ckpt')
    .description('moves new weights into running inference engines')
    .version(manifest.version)
    .addHelpText('after', EXIT_CODES)
    .configureOutput({ writeErr: () => {} })
    .exitOverride()
  addServeCommand(program)
  addUpdateCommand(program)
  addJoinCommand(program)
  addEngineCommand(program)
  addDemoCommand(program)
  addLsCommand(program)
  addRmCommand(program)
  addStatusCommand(program)
  addEngineMapCommand(program)
  addAbortCommand(program)
  addDoctorCommand(program)
  addPlanCommand(program)
  // commander copies exitOverride and the output only to commands made before: make every one throw
  for (const command of program.commands) {
    command.exitOverride().configureOutput({ writeErr: () => {} })
  }
  return program
}
