// SPDX-License-Identifier: Apache-2.0

import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.util.ArrayList;
import java.util.List;
import java.util.StringJoiner;

/**
 * Leaks three connections in one way, says who must hold them (not the descriptors, which the
 * platform does not tell), and ends with its standard input.
 */
class Leak {
    static final int COUNT = 3;
    static final List<Socket> keep = new ArrayList<>();

    public static void main(String[] args) throws Exception {
        ServerSocket server = new ServerSocket(0, 16, InetAddress.getLoopbackAddress());
        for (int i = 0; i < COUNT; i++) {
            Socket client = new Socket(server.getInetAddress(), server.getLocalPort());
            Socket ours = server.accept();
            client.getOutputStream().write(1);
            client.close();
            if (args[0].equals("drained")) {
                while (ours.getInputStream().read() >= 0) {}
            }
            if (args[0].equals("correct")) {
                ours.close();
            }
            keep.add(ours);
        }
        StringJoiner out = new StringJoiner(",", "[", "]");
        for (int i = 0; i < COUNT && !args[0].equals("correct"); i++) {
            out.add("[" + ProcessHandle.current().pid() + ",null]");
        }
        System.out.println(out);
        while (System.in.read() >= 0) {}
        System.exit(0);
    }
}
