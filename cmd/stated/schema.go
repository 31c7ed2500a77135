// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/stated-tcp/stated/pkg/render"
)

func newSchema() *cobra.Command {
	return &cobra.Command{
		Use:   "schema [RECORD]",
		Short: "Print the JSON Schema of what -o json writes",
		Long: `schema prints a JSON Schema (draft 2020-12) of all records that stated writes,
or of one. It names every field with its unit, and every word that may stand in
it; what it does not name is in no record.`,
		Example: `  stated schema
  stated schema tcp.connection`,
		Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return render.SchemaRecords(), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := render.Schema(strings.Join(args, ""))
			if err != nil {
				return usageError{err}
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
}
